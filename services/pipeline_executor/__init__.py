"""The context that runs pipelines.

It owns the rows of every tenant's ``x_meta_*`` and data tables, and the pipeline templates. It promises that a run
either replaces exactly its dates or changes nothing, and says why. It decides neither who may call nor how much: that
is tenant's; it keeps no secret: that is credential's.
"""
