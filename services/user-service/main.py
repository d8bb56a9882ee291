"""`uvicorn main:app --port 8001`"""

from user_service.app import create_app

app = create_app()
