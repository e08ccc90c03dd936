"""VFMGL Workbook: federated learning with personalised models guided by a vision foundation model.

The notebooks tell the story; this library holds the mathematics, the data handling and the federation they call.
`vfmgl_lib.study` is the entry the notebooks use, `vfmgl_lib.batch` runs the notebooks themselves.
"""

__version__ = "0.1.0"
