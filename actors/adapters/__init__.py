"""The only modules that import a server's client library, one each; they act and have no policy."""
