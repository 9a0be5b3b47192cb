"""The few settings that a robot needs; an application has its own."""

import os

from psycopg.conninfo import conninfo_to_dict

url = conninfo_to_dict(os.environ["DATABASE_URL"])
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": url["dbname"],
        "USER": url["user"],
        "PASSWORD": url.get("password", ""),
        "HOST": url["host"],
        "PORT": url.get("port", ""),
        # Sessions and handled commands are in namespaces that config.toml does not publish.
        "OPTIONS": {"options": "-c search_path=public,auth,robot", "application_name": "profile_robot"},
    }
}
INSTALLED_APPS = ["profiles"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
