"""What people write: pandas reads, the client loads. ``with_pandas.py FOLDER REST PROJECT FILE…`` prints JSON."""

import json
import resource
import sys
import time

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from google.auth.credentials import AnonymousCredentials
from google.cloud import bigquery

_folder, rest, project, *files = sys.argv[1:]
began = time.perf_counter()
client = bigquery.Client(project, AnonymousCredentials(), client_options={"api_endpoint": rest})
client.create_dataset("bench_pandas", exists_ok=True)
names = [field.name for field in pq.read_schema(files[0]) if not pa.types.is_map(field.type)]
frame = pd.concat([pd.read_parquet(file, columns=names) for file in files])
job = client.load_table_from_dataframe(frame, f"{project}.bench_pandas.report")
rows = job.result().output_rows
seconds = time.perf_counter() - began
client.delete_dataset("bench_pandas", delete_contents=True)
used = resource.getrusage(resource.RUSAGE_SELF)
figures = {"rows": rows, "seconds": seconds, "cpu": used.ru_utime + used.ru_stime, "mib": used.ru_maxrss // 1024}
print(json.dumps(figures))
