"""Inspections of classifiers, as they are and as they will be deployed."""
