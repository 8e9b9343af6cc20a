"""``python -m services.pipeline_executor`` runs the service; ``--check`` validates its settings and exits."""

from services.pipeline_executor.main import main

if __name__ == "__main__":
    main()
