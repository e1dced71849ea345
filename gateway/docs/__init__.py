"""Writes reference pages of docs/ from the code. Nothing at run time imports it."""
