"""The words of the command line, by topic: each verb parses them and makes one call."""
