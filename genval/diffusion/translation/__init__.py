"""Unpaired image translation: a network that changes the condition of a real photo and keeps its content."""
