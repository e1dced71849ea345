"""How long a plan takes for a request: measured, corrected online, predicted."""
