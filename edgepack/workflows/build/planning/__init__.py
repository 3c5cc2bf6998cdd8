"""Recipe x Device -> Plan: the steps of a build, each with its key, and whether it is cached or why it must run."""
