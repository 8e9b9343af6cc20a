"""``python -m services.tenant``."""

from services.tenant.main import main

main()
