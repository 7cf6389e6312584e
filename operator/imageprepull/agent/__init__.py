"""One node: desired against present, pulls, pins, and the report. Imports neither kopf nor kubernetes."""
