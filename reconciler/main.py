"""`uvicorn main:app --port 8006`"""

from ledger_reconciler.app import create_app

app = create_app()
