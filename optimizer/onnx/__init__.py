"""ONNX graphs: written, quantized, checked, profiled."""
