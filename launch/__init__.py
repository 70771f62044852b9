"""What starts, watches, stops and reports: plan, launchers, supervisor and the command line."""
