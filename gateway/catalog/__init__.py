"""catalog.json, the contract between optimizer and gateway: its schema, its rules, its file."""
