"""DATABASE_URL=postgres://… python manage.py profile_robot --brokers localhost:9092"""

import os
import sys

from django.core.management import execute_from_command_line

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")
execute_from_command_line(sys.argv)
