"""The parts of Slicer's application that the MRML library lacks, without Qt: scene, logics, off-screen views, layouts.

Set VTK_DEFAULT_OPENGL_WINDOW (see `conftest.py`) before the first import of vtk.
"""
