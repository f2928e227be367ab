"""The static page: search in the browser, as a folder that any static host serves."""
