"""`uvicorn main:app --port 8004`"""

from payment_gateway.app import create_app

app = create_app()
