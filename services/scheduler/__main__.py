"""``python -m services.scheduler`` runs the service; ``--check`` validates its settings and exits."""

from services.scheduler.main import main

if __name__ == "__main__":
    main()
