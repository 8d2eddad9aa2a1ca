"""The files of the Slicer module. Nothing is imported here, so that Slicer finds the module fast.

Arrows point one way: panels -> session -> sources and displays.

| file | what it holds |
|---|---|
| `CasePair.py` | a synthetic image and a training image, as plain arrays |
| `Sources.py`, `FolderSource.py`, `ServerSource.py` | cases and ratings, from a folder or a server |
| `PairMaking.py` | a pair from files: place, mask, surfaces |
| `Logic.py`, `ShownImage.py`, `Nodes.py` | MRML nodes of a pair; owns the displays |
| `ComparisonLayout.py`, `Cameras.py` | layouts and their views |
| `SliceComposition.py`, `DerivedVolumes.py` | slices: window, fade, blink, checkerboard, difference |
| `SurfaceDisplay.py`, `PlacedSurfaces.py` | surfaces, outlines, heat map, legend, peaks |
| `MatchTransform.py` | the transform of the second image onto the first |
| `RatioPlot.py` | ratios of the set and of the null |
| `CaseReport.py` | the scene and a page of the case |
| `Blinding.py` | random sides, neutral names |
| `Session.py`, `CaseList.py`, `Reading.py`, `PairLoader.py` | one reader at work |
| `Widget.py`, `Panel.py`, `*Panel.py` | the panels of the window |
| `Transport.py`, `Events.py` | work outside the window's thread |
| `Settings.py`, `Parameter.py`, `Translation.py` | preferences, state, language |
| `SceneImage.py` | an image of the scene as a file |
| `Example.py`, `SelfTest.py` | an invented collection; the module's self-test |

Files from `CasePair.py` to `Blinding.py` import neither qt nor ctk: they run on the MRML library alone.
"""
