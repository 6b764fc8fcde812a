-- Hash-partitions the large tables by tenant, with their policies. For an empty database that `strandline migrate` has made;
-- afterwards `strandline migrate` once more, which grants the new tables. See scale.md.
DO $$
DECLARE
    parts constant integer := 64;
    name text;
    visible text;
BEGIN
    FOREACH name IN ARRAY ARRAY['files', 'directories', 'changes'] LOOP
        SELECT pg_get_expr(polqual, polrelid) INTO STRICT visible
            FROM pg_policy WHERE polname = 'of_the_caller' AND polrelid = name::regclass;
        EXECUTE format('ALTER TABLE %I RENAME TO %I', name, 'former_' || name);
        EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING ALL) PARTITION BY HASH (tenant_id)', name, 'former_' || name);
        FOR part IN 0..parts - 1 LOOP
            EXECUTE format('CREATE TABLE %I PARTITION OF %I FOR VALUES WITH (MODULUS %s, REMAINDER %s)',
                           name || '_' || part, name, parts, part);
        END LOOP;
        -- LIKE copies neither; without them the API's role would see every tenant.
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('CREATE POLICY of_the_caller ON %I USING (%s)', name, visible);
        EXECUTE format('DROP TABLE %I', 'former_' || name); -- fails, and undoes all, where something refers to it
    END LOOP;
END
$$;
