-- A login for each service, which is the role that it works as, and one for the metrics exporter. Run by the owner of
-- the database at every start: a password that has changed in the environment has changed here afterwards.
\set ON_ERROR_STOP on
\getenv user_service USER_SERVICE_POSTGRES_PASSWORD
\getenv wallet_service WALLET_SERVICE_POSTGRES_PASSWORD
\getenv transaction_service TRANSACTION_SERVICE_POSTGRES_PASSWORD
\getenv payment_gateway PAYMENT_GATEWAY_POSTGRES_PASSWORD
\getenv notification_service NOTIFICATION_SERVICE_POSTGRES_PASSWORD
\getenv reconciler RECONCILER_POSTGRES_PASSWORD
\getenv postgres_exporter EXPORTER_POSTGRES_PASSWORD

select format('create role %I', name)
from unnest(array[
    'user_service', 'wallet_service', 'transaction_service', 'payment_gateway', 'notification_service',
    'reconciler', 'postgres_exporter'
]) as name
where not exists (select from pg_roles where rolname = name) \gexec

begin;
set local log_statement = 'none';
set local log_min_error_statement = 'panic';
alter role user_service login password :'user_service';
alter role wallet_service login password :'wallet_service';
alter role transaction_service login password :'transaction_service';
alter role payment_gateway login password :'payment_gateway';
alter role notification_service login password :'notification_service';
alter role reconciler login password :'reconciler';
alter role postgres_exporter login password :'postgres_exporter';
grant pg_monitor to postgres_exporter;
commit;
