"""`uvicorn main:app --port 8003`"""

from transaction_service.app import create_app

app = create_app()
