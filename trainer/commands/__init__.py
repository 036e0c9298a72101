"""The console command `dmtg`: one module for each command, put together and called in `app`.

Modules here import only typer at the top and the work inside the command, so help starts at once.
"""
