"""The lab beside a real gateway, on the same traces."""
