"""Uploaded files, examined before any reader of images opens them."""
