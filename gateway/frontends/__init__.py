"""Protocols: from the wire to a question and its SLO, and from an answer to the wire."""
