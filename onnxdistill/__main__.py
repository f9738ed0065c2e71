"""`python -m onnxdistill`: the command line, where the script `onnxdistill` is not on the path."""

from onnxdistill.cli import main

if __name__ == "__main__":
    main()
