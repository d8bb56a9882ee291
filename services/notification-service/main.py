"""`uvicorn main:app --port 8005`"""

from notification_service.app import create_app

app = create_app()
