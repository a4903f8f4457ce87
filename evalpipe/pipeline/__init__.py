"""The spine: five stages that meet in the store."""
