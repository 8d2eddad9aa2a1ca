"""What the Slicer module is made of. Nothing is imported here, so that Slicer finds the module fast.

| file | what it holds | needs |
|---|---|---|
| `CasePair.py` | a synthetic image and its training match, as plain arrays | numpy |
| `Sources.py`, `FolderSource.py`, `ServerSource.py` | where cases come from and ratings go: a result folder, a server | numpy, scipy, SimpleITK |
| `Logic.py` | `ReplicaDetectionLogic`: a pair in, MRML nodes out; owns the displays below | MRML |
| `ComparisonLayout.py` | the layouts and their views | MRML |
| `SliceComposition.py` | slice views: windows, fade, blink, checkerboard, difference, crosshair | MRML |
| `SurfaceDisplay.py` | surfaces, outlines, distance heat map with legend, jumps | MRML |
| `MatchTransform.py` | where the training image is put: as compared, or moved by the alignment | MRML |
| `RatioPlot.py` | ratios of the set and of the null, threshold, this case | MRML |
| `CaseReport.py` | the scene and a page of the pair | MRML |
| `Blinding.py` | neutral names, random side | nothing |

None of these files imports qt or ctk: they run, and are tested, on the MRML library alone.
"""
