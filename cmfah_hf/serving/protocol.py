"""Constants that server and client of the search service share."""

# A client and a server of different numbers do not understand each other. Raised whenever a field changes its meaning
# or disappears; every reply has it as a header.
API_VERSION = 1
API_HEADER = "CMFAH-API"
DEFAULT_PORT = 8008
