"""A Django application that writes model rows and events in one atomic() block.

The whole of it in one file: settings, models, and what a view would do. Run by tests/outbox.rs, and
by hand against a database that has migrations/0002 and 0003:

    python shop.py postgres://…/app
"""

import sys
import uuid

import django
from django.conf import settings
from django.db import connection, models, transaction

from psycopg.conninfo import conninfo_to_dict

url = conninfo_to_dict(sys.argv[1])
settings.configure(
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": url["dbname"],
            "USER": url["user"],
            "PASSWORD": url.get("password", ""),
            "HOST": url["host"],
            "PORT": url.get("port", ""),
        }
    },
    USE_TZ=True,
)
django.setup()


class Order(models.Model):
    id = models.TextField(primary_key=True)
    total = models.DecimalField(max_digits=12, decimal_places=2)

    class Meta:
        app_label = "shop"
        db_table = "shop_order"


class Outbox(models.Model):
    """The table of migrations/0002_onelog_outbox.sql."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    aggregatetype = models.TextField()
    aggregateid = models.TextField()
    type = models.TextField()
    payload = models.JSONField(null=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        app_label = "shop"
        db_table = "outbox"
        managed = False


class Declined(Exception):
    pass


def place(order_id, total, correlation_id, card_is_good=True):
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SELECT onelog.context(%s)", [correlation_id])
        Order.objects.create(id=order_id, total=total)
        event = Outbox.objects.create(
            aggregatetype="order",
            aggregateid=order_id,
            type="OrderPlaced",
            payload={"id": order_id, "total": total, "note": "Grüße"},
        )
        event.delete()  # published all the same, and the table stays empty
        if not card_is_good:
            raise Declined(order_id)


def ship(order_id):
    """The same without a table."""
    with transaction.atomic():
        order = Order.objects.select_for_update().get(id=order_id)
        with connection.cursor() as cursor:
            emit = "SELECT onelog.emit('order', %s, 'OrderShipped', %s)"
            cursor.execute(emit, [order.id, '{"id": "%s"}' % order.id])


with connection.schema_editor() as editor:
    if Order._meta.db_table not in connection.introspection.table_names():
        editor.create_model(Order)

place("o1", 12.5, "request-1")
try:
    place("o2", 99, "request-2", card_is_good=False)
except Declined:
    pass
ship("o1")
