"""What the Slicer module is made of. Nothing is imported here, so that Slicer finds the module fast.

`Logic.py` turns a pair into MRML nodes and owns the displays (`ComparisonLayout`, `SliceComposition`, `SurfaceDisplay`,
`MatchTransform`, `RatioPlot`, `Cameras`); `Sources.py` says where pairs come from and ratings go. None of these files
imports qt or ctk: they run, and are tested, on the MRML library alone. `Session.py` is one reader at work, and the
panels show it.
"""
