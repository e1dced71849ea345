"""Whether answers, predictions and certificates hold."""
