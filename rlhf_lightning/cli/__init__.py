"""The command line: options, configuration, messages, exit statuses."""
