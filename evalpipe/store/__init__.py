"""What survives a restart: the tables, the migrations, and one module of functions for each thing kept in them.

A stage opens one ``Transaction`` and calls these functions in it, so that what belongs together commits together.
"""
