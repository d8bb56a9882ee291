"""`uvicorn main:app --port 8000`"""

from api_gateway.app import create_app

app = create_app()
