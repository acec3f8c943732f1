"""The driver's side: command line, configuration, plan, supervisor and the one package that calls Ray."""

__version__ = "0.1.0"
