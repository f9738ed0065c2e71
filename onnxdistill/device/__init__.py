"""What runs on the target device: numpy and ONNX Runtime only, no torch and no onnx."""
