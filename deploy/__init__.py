"""How a chosen point goes to PRODUCTION."""
