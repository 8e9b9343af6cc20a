"""``python -m services.credential`` runs the service; ``--check`` validates its settings and exits."""

from services.credential.main import main

if __name__ == "__main__":
    main()
