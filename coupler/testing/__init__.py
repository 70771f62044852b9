"""The public testing kit: checks for plug-ins, a flaky link, a manual clock."""
