"""Model servers behind one protocol: Triton, several Tritons, ONNX Runtime in this process."""
