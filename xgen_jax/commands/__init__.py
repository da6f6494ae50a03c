"""The functions behind the commands of launch/, importable."""
