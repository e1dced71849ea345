"""The open-loop driver: a schedule of requests, sent when they are due whatever became of the others."""
