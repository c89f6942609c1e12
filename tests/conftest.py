import os

os.environ.setdefault("TQDM_DISABLE", "1")  # progress bars would be outputs of notebooks' cells
