"""Where the time of a model goes: ONNX Runtime's profile, read, audited, and held against the machine."""
