"""`uvicorn main:app --port 8002`"""

from wallet_service.app import create_app

app = create_app()
