"""What static quantization knows of an ONNX graph: how it is prepared, calibrated, and given its ranges."""
